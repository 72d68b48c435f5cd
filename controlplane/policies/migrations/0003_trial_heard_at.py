from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("policies", "0002_trials"),
    ]

    operations = [
        migrations.AddField(
            model_name="trial",
            name="heard_at",
            field=models.DateTimeField(help_text="When whoever runs it last said how far it is.", null=True),
        ),
    ]
