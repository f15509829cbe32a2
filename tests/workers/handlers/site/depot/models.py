"""The table of the project."""

from django.db import models


class Crate(models.Model):
    label = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.label
