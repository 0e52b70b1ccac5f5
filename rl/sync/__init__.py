"""Weights on their way from learner ranks to samplers, through the medium that the two sides share.

tensors ─► Checksummed ─► packed into buckets ─► medium ════════════► buffer ─► unpacked ─► vLLM's loader, Checksummed
                                  │ at most two that are not yet taken            │
                                  └─► line: what the bucket holds ──────────────► │
                                      line: taken, or why not  ◄──────────────────┘

seats.py     where a process works, and which medium joins whom
line.py      the control line of two processes: small messages over TCP, and the news that the other side is gone
bucket.py    tensors into buckets and out again
sender.py    a learner rank's side         receiver.py  a sampler worker's side
media.py     what a medium offers; object_store.py, collective.py (gloo, NCCL), shared_memory.py, cuda_ipc.py
"""
