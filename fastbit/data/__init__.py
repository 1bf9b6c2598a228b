"From a path to a batch: folders, tables, splits, pixels, loaders, streams"
from ..core.doors import open_door

if not open_door(__name__):   # each is imported when it is first used: tables and folders are read without PyTorch
    from .decode import open_image, read_image
    from .check import check_images, inspect_image
    from .copies import duplicate_groups
    from .groups import exif_times, fold_numbers, path_groups
    from .tables import ImageSet, image_table, read_image_set
    from .ordered import read_ordered_set
    from .split import check_table, few_shot_table, split_table
    from .transforms import ImageFile, square_image, train_image
    from .views import resolve_views, default_views, view_image
    from .pixels import PixelCache
    from .features import Features, frozen_features
    from .balance import BalancedDraw, class_weights
    from .neighbors import FeatureIndex, nearest_rows
    from .batches import ImageDL, PathLabel
    from .loaders import ImageLoaders, image_dataloaders, table_dataloaders
    from .public import PUBLIC_SETS, digits_table, named_table
    from .flowers import FLOWERS, draw_bouquet, draw_flower, drawn_bouquets, drawn_flowers
    from .steps import StepDL, mixup_draw, step_rows
    from .streams import ImageStream, parquet_stream, tar_stream
    from .stream_dl import stream_dataloaders

__all__ = [
    'BalancedDraw', 'check_images', 'check_table', 'class_weights', 'resolve_views', 'default_views', 'digits_table',
    'draw_bouquet', 'draw_flower', 'drawn_bouquets', 'drawn_flowers', 'duplicate_groups', 'exif_times',
    'FeatureIndex', 'Features', 'few_shot_table',
    'FLOWERS', 'fold_numbers', 'frozen_features', 'image_dataloaders', 'image_table', 'ImageDL', 'ImageFile',
    'ImageLoaders', 'ImageSet', 'ImageStream', 'inspect_image', 'mixup_draw', 'named_table', 'nearest_rows',
    'open_image', 'parquet_stream', 'path_groups', 'PathLabel', 'PixelCache', 'PUBLIC_SETS', 'read_image',
    'read_image_set', 'read_ordered_set', 'split_table', 'square_image', 'step_rows', 'StepDL',
    'stream_dataloaders', 'table_dataloaders', 'tar_stream', 'train_image', 'view_image',
]
