"""Networks that give a class for every pixel."""
