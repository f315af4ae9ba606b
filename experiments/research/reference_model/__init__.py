"""How the two reference models were made: text, architecture, training, evaluation."""
