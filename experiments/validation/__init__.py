"""One plan in the engine and in the simulator: how far do they differ?"""
