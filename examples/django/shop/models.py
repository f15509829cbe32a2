"""The shop's own data."""

from django.db import models


class Invoice(models.Model):
    number = models.IntegerField(primary_key=True)
    customer = models.CharField(max_length=100)
    file = models.CharField(max_length=200, default="")

    def __str__(self) -> str:
        return f"invoice {self.number}"
