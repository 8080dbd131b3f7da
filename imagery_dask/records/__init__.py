"""Records of an export: files beside the target with its plan, its finished blocks and the process that writes it.

May import `storage`, `cluster` and `sources`; knows no format. Begin with `runs`. The records of ``URL`` are in
``URL.receipts/``::

    lease.json, part-I-of-N.json      the process that writes now
    driver.json                       the job of a batch system that runs the driver
    RUN/plan.json                     the plan, and the state of the run
    RUN/receipts-PROCESS.bin          a receipt for each block whose bytes are in the store
    RUN/ledger-PROCESS.jsonl          chunks of the source that were missing, by block
    RUN/failed-PROCESS.jsonl          blocks that failed, and the reasons
    RUN/damaged.json                  blocks that `verify` found damaged
    ledger.jsonl                      the ledger of a finished export as a table, in order
"""
