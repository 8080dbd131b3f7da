"""Synthetic data and servers for tests, notebooks and the demo.

May import `geometry` and, for volumes and servers, CloudVolume and caveclient. Begin with `volume`, which writes a
small EM volume made by `tissue`; `cave` serves a dynamic segmentation.
"""
