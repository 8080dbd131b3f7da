"""Options that several commands share: what they read, and the syntax of their values.

`region_flags` selects a region, `source_flags` a datastack and a moment; `param_types` reads sizes, shapes and times.
"""
