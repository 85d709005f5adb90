"""Hand-written forms of operations that XLA compiles badly for a CPU.

Every file holds one operation twice: the form in use, whose docstring says what it
gains, and a plain twin (`*_plain`) that says what it computes. Tests compare the two,
`python -m benchmarks --kernels` times them on the machine at hand. Figures in the
docstrings are its times on two cores of an AMD EPYC with jax 0.10.2, at 64 sequences of
50 steps and width 128 unless noted otherwise.
"""
