"""Files that survive a kill: written atomically, known by digest."""
