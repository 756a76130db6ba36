"""The detector's workshop: boxes from COCO JSON or Pascal VOC, anchors, training, copies, evaluation."""
