"""How a visit's experts are computed: each by itself as transformers does, or grouped, by kernels over the slots."""
