"""CodeAgent-v0: repair of small programs."""
