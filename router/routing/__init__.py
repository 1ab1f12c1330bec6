"""Which replica takes a request: the policy, pure, and the columns of loads and speeds that it reads."""
