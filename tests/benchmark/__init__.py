"""`make bench`: the worker beside a plain aiokafka+httpx loop, in one run on one machine."""
