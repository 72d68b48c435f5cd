from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('telemetry', '0001_initial'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='latencyrollup',
            name='latency_rollup_once',
        ),
        migrations.AddField(
            model_name='latencyrollup',
            name='objectives',
            field=models.CharField(default='', help_text='By what its requests were judged.', max_length=96),
        ),
        migrations.AddConstraint(
            model_name='latencyrollup',
            constraint=models.UniqueConstraint(fields=('pool', 'resolution_s', 'started_at', 'class_id', 'objectives'), name='latency_rollup_once'),
        ),
    ]
