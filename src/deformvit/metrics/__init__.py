"""Metrics of classification, detection and segmentation."""
