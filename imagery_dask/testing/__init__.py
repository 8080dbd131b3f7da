"""Synthetic data and servers for tests, notebooks and the demo.

Begin with `volume`, which writes a small EM volume made by `tissue`; `cave` serves a dynamic segmentation.
"""
