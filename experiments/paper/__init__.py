"""Eliseev & Mazur 2023 (arXiv 2312.17238), reproduced: their Table 2 from a fit, their Figures 1 and 2 from any trace.

`python -m experiments.paper table2` and `python -m experiments.paper figures TRACE --output DIR`; docs/paper.md reads
the results.
"""
