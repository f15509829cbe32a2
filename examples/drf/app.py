"""A Django REST Framework backend in one file. ATOMIC_REQUESTS: each request is a transaction, and so is its job."""

from __future__ import annotations

import os

import django
from django.conf import settings

settings.configure(
    SECRET_KEY=os.environ.get("SHOP_SECRET", "a secret only for trying this out"),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    INSTALLED_APPS=["rest_framework", "penstock.producers.contrib.django"],
    MIDDLEWARE=["penstock.producers.contrib.django.traces"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("SHOP_DATABASE", "shop.db"),
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
            "ATOMIC_REQUESTS": True,
        }
    },
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from acme.jobs import WriteInvoice  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import IntegrityError, connection, models  # noqa: E402
from django.urls import include, path  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from rest_framework import serializers, status  # noqa: E402
from rest_framework.exceptions import APIException  # noqa: E402
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

from penstock.producers.contrib.django import Outbox, events_path, producer  # noqa: E402

outbox = Outbox()


class Invoice(models.Model):
    number = models.IntegerField(primary_key=True)
    customer = models.CharField(max_length=100)

    class Meta:
        app_label = "shop"


class InvoiceSerializer(serializers.ModelSerializer):
    class Meta:
        model = Invoice
        fields = ("number", "customer")
        extra_kwargs = {"number": {"validators": []}}  # noqa: RUF012  # the database decides whether it is taken

    def job(self) -> WriteInvoice:
        self.is_valid(raise_exception=True)
        try:
            return WriteInvoice(**self.validated_data)
        except ValidationError as error:
            raise serializers.ValidationError(error.errors(include_url=False, include_context=False)) from error


class Taken(APIException):
    status_code = status.HTTP_409_CONFLICT


class Invoices(APIView):
    def post(self, request: Request) -> Response:
        """The invoice and its job are committed together or not at all: an APIException rolls the request back."""
        serializer = InvoiceSerializer(data=request.data)
        handle = outbox.enqueue(serializer.job())
        try:
            Invoice.objects.create(**serializer.validated_data)
        except IntegrityError as error:
            raise Taken(f"there is an invoice {request.data['number']} already") from error
        return Response({"job": handle.id, "events": events_path(handle)}, status.HTTP_202_ACCEPTED)


class Reprints(APIView):
    def post(self, request: Request) -> Response:
        """Nothing to commit: straight to the broker."""
        handle = producer().enqueue(InvoiceSerializer(data=request.data).job())
        return Response({"job": handle.id, "events": events_path(handle)}, status.HTTP_202_ACCEPTED)


urlpatterns = [
    path("invoices", Invoices.as_view()),
    path("reprints", Reprints.as_view()),
    path("penstock/", include("penstock.producers.contrib.django.urls")),
]
application = get_wsgi_application()

if __name__ == "__main__":  # make the tables
    call_command("migrate")
    with connection.schema_editor() as editor:
        editor.create_model(Invoice)
