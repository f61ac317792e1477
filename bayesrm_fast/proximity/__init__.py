"""What rules weigh beside a reward: how alike responses are, and how probable under the policy."""
