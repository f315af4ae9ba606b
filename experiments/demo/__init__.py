"""The whole chain in about a minute, on the reference models that ship with the package."""
