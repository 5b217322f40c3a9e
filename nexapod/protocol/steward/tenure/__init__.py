"""One panel member's part in keeping the seats of a job filled."""
