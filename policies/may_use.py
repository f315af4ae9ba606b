"""What compiled policies may use: the list of docs/policies.md, every line of which is compiled by a test.

In each expression `self.last` and `self.score` are declared arrays of whole and of real numbers, `self.flag` is one of
truth values, and `n` is a whole number.
"""

MAY_USE: dict[str, tuple[str, ...]] = {
    "numbers": (
        *(
            "n + 1",
            "n - 1",
            "n * 2",
            "n / 2",
            "n // 2",
            "n % 3",
            "n**2",
            "-n",
            "n & 1",
            "n | 1",
            "n ^ 1",
            "n << 1",
            "n >> 1",
        ),
        *(
            "abs(n)",
            "min(n, 3)",
            "max(n, 3)",
            "round(1.5)",
            "int(1.5)",
            "float(n)",
            "bool(n)",
            "divmod(n, 3)[0]",
            "pow(n, 2)",
        ),
        *("1 < n < 5", "not n", "n if n > 2 else 3", "(1, 2, 3)[1]", "sum((1, 2))", "isinstance(n, int)"),
    ),
    "math": (
        *(
            "math.log(1.0 + n)",
            "math.log2(8.0)",
            "math.log1p(0.5)",
            "math.exp(0.5)",
            "math.sqrt(2.0)",
            "math.pow(2.0, 3.0)",
        ),
        *("math.tanh(0.5)", "math.hypot(3.0, 4.0)", "math.floor(1.5)", "math.ceil(1.5)", "math.isnan(1.0)", "math.inf"),
    ),
    "numpy, of numbers": (
        *("np.log(1.0 + n)", "np.log2(8.0)", "np.log1p(0.5)", "np.exp(0.5)", "np.sqrt(2.0)", "np.power(2.0, 3.0)"),
        *("np.tanh(0.5)", "np.abs(-1)", "np.sign(-2)", "np.floor(1.5)", "np.ceil(1.5)", "np.minimum(1, 2)"),
        *(
            "np.maximum(1, 2)",
            "np.isnan(1.0)",
            "np.isfinite(1.0)",
            "np.inf",
            "np.int64(3)",
            "np.uint32(3)",
            "np.float64(3)",
        ),
    ),
    "arrays": (
        *("self.last[n]", "self.last[:4].sum()", "len(self.last)", "max(self.last)", "min(self.last)"),
        *("self.last.sum()", "self.score.mean()", "np.sum(self.last)", "np.prod(self.score)", "np.mean(self.score)"),
        *("np.var(self.score)", "np.std(self.score)", "np.argmax(self.last)", "np.argmin(self.last)"),
        *("np.any(self.flag)", "np.all(self.flag)", "np.searchsorted(self.last, 3)"),
    ),
}
"""Expressions by what they are about."""
STATEMENTS = (
    "if and match",
    "while and for with break, continue and else",
    "range, enumerate and zip",
    "tuples taken apart",
    "slices set to one value",
    "functions of the module, inner functions and lambda",
    "raise and assert",
)
"""What else may be written."""
