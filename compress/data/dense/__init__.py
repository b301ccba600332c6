"""Images with a class for every pixel: layouts of folders, views, pictures."""
