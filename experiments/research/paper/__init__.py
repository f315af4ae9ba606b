"""Eliseev & Mazur 2023 (arXiv 2312.17238), reproduced: their Table 2 from a fit, their Figures 1 and 2 from any trace.

    python -m experiments.research.paper table2
    python -m experiments.research.paper figures TRACE --output DIR

docs/paper.md reads the results.
"""
