"""A rename that fails, for what must appear whole or not at all."""

import os


class FailingRename:
    """`os.rename`, which fails at its n-th call, before it has moved anything or as soon as it has."""

    def __init__(self, at, error, moves=False):
        self.left, self.error, self.moves, self.rename = at, error, moves, os.rename

    def __call__(self, *args):
        self.left -= 1
        if self.left != 0 or self.moves:
            self.rename(*args)
        if self.left == 0:
            raise self.error
