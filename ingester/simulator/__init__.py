"""A stand-in for PacSpace's HTTP API, for development, tests and demonstrations.

It behaves as the API is documented to, fails on demand, and can say exactly what it applied.
`validation`, `ledger`, `faults`, `answers` and `api` are pure, `admin` and `server` speak HTTP.
"""
