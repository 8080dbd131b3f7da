"""Real servers and real files that the tests start, write and read; nothing here is a mock."""
