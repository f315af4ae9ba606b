"""Which machine to buy or hire for a model: the fastest plan found on each, what it costs, and what binds it."""
