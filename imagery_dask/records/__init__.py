"""Records of an export: files beside the target that say what is written, and how far it is.

May import `storage`, `cluster` and `sources`; knows no format. Begin with `runs`. The records of ``URL`` lie in
``URL.receipts/``::

    lease.json, part-I-of-N.json      which process writes at the moment
    driver.json                       which job of a batch system runs the export
    RUN/plan.json                     what is written, in which blocks, and how far the run is
    RUN/receipts-PROCESS.bin          a receipt for each block whose bytes are in the store
    RUN/ledger-PROCESS.jsonl          which chunks of the source each of these blocks missed
    RUN/failed-PROCESS.jsonl          blocks that failed, and why
    RUN/damaged.json                  blocks that `verify` found damaged
    ledger.jsonl                      the ledger of a finished export as a table, in order
"""
