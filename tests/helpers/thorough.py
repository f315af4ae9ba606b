"""How thorough tests are: `make thorough` asks for four times the examples."""

import os

THOROUGH = 4 if os.environ.get("TRACEKIT_THOROUGH") else 1
