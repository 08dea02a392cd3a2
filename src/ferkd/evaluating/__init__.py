"""Accuracy and calibration of a trained student."""
