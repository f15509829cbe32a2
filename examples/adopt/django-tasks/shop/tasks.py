"""The shop's tasks, as django-tasks has them."""

from django.db.models import F
from django_tasks import TaskContext, task

from shop.models import Order


class CardRefused(Exception):
    """The bank wants no more of it."""


@task()
def pack(order_id: int, *, fragile: bool = False) -> dict:
    """Pack an order, and have its customer told."""
    Order.objects.filter(pk=order_id).update(state="packed")
    mail = write_mail.using(priority=10).enqueue(order_id, "Your order is packed")
    return {"order": order_id, "fragile": fragile, "mail": mail.id}


@task(queue_name="mails")
async def write_mail(order_id: int, subject: str) -> str:
    """Write to the customer of an order."""
    await Order.objects.filter(pk=order_id).aupdate(mails=F("mails") + 1)
    order = await Order.objects.aget(pk=order_id)
    return f"{order.customer}: {subject}"


@task(takes_context=True)
def charge(context: TaskContext, order_id: int) -> int:
    """Charge an order. The bank's line is down the first time."""
    Order.objects.filter(pk=order_id).update(charges=F("charges") + 1)
    if context.attempt == 1:
        raise ConnectionError("the bank does not answer")
    return context.attempt


@task()
def refund(order_id: int) -> None:
    """Give the money of an order back, which the bank refuses."""
    raise CardRefused(f"order {order_id}\nwas paid in cash")
