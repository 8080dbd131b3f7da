"""Run an export, or a part of one, so that it can be killed and resumed at any moment.

May import `export.core` and `export.reports`. Begin with `execute`, where the order in which things are written is on
one page; `resume` decides whether a run is new, is resumed, or must not start.
"""
