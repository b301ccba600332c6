"""Object detection with the distilled encoder as the backbone of a Faster R-CNN."""
