"""What the flows are made of: DVC calls, the schedule, progress, Prefect's server, warm processes."""
