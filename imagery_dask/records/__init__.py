"""What is written beside a store while it is exported: the plan, a receipt of each block, a ledger, a lease.

Of a store ``OUT`` they lie in ``OUT.receipts/``::

    lease.json                        who writes at the moment
    RUN/plan.json                     what is written, and in which blocks
    RUN/receipts-PROCESS.bin          a receipt for each block whose bytes are in the store
    RUN/ledger-PROCESS.jsonl          which chunks of the source each of these blocks missed
    RUN/failed-PROCESS.jsonl          blocks that failed, and why
    RUN/damaged.json                  blocks that `verify` found damaged
    ledger.jsonl                      of a finished export: the ledger as a table, in order
"""
