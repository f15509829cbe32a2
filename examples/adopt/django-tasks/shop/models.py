"""The shop's own data."""

from django.db import models


class Order(models.Model):
    customer = models.CharField(max_length=100)
    state = models.CharField(max_length=20, default="new")
    mails = models.IntegerField(default=0)
    charges = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"order {self.pk} of {self.customer}"
