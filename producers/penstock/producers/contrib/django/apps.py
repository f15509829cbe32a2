"""The app, labelled `penstock`."""

from django.apps import AppConfig


class PenstockConfig(AppConfig):
    name = "penstock.producers.contrib.django"
    label = "penstock"
    verbose_name = "Penstock"
