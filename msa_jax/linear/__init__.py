"""Linear models of pooled features, fitted in closed form or by Newton's method: what
every system has to beat.

NumPy, float64, on the host: seconds for the corpora of the field.
"""
