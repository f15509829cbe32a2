"""The shop's routes."""

from django.urls import include, path

from shop import views

urlpatterns = [
    path("invoices", views.create_invoice),
    path("reprints", views.reprint),
    path("penstock/", include("penstock.producers.contrib.django.urls")),
]
