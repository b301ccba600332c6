"""Student, frozen teachers and a method as one trainable module."""
