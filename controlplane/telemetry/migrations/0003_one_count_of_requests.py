from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('telemetry', '0002_judged_by_objectives'),
    ]

    operations = [
        migrations.RemoveField(
            model_name='latencyrollup',
            name='num_tpot',
        ),
        migrations.RemoveField(
            model_name='latencyrollup',
            name='num_ttft',
        ),
    ]
