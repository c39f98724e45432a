"""Released checkpoints: the authors' files of DAT and DAT++ (LeapLabTHU/DAT, DAT-Detection, DAT-Segmentation)."""
