"""Files with arguments of the command line: options of an export, and named boxes.

May not import other modules of `cli`. `config_files` reads and writes ``--config``, `region_files` reads ``--regions``.
"""
