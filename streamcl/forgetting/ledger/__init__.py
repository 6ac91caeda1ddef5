"""The ledger: requests, durable before they are acknowledged, and the tombstones that they leave."""
