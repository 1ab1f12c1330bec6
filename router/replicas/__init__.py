"""The replicas as this router sees them: connections, what runs there, whether they step, how they leave."""
