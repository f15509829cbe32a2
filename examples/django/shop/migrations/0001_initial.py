"""The first table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Invoice",
            fields=[
                ("number", models.IntegerField(primary_key=True, serialize=False)),
                ("customer", models.CharField(max_length=100)),
                ("file", models.CharField(default="", max_length=200)),
            ],
        ),
    )
