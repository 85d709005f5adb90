"""Linear models of pooled features, what every system has to beat.

NumPy, float64, on the host: seconds for the corpora of the field.
"""
