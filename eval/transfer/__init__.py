"""The transfer stage and command: a task on an encoder from several initialisations."""
