/*
 * Lists in a csv what a person changed of the nuclei that stqp wrote: classes and outlines.
 * One row for each corrected nucleus, with its place in µm. Run again, it replaces the rows of the image and keeps
 * those of others, so that one file serves a whole project. What counts as corrected is what stqp train takes for
 * it. Nuclei that were deleted are gone, and not listed.
 *
 * In QuPath: Automate > Project scripts > export corrections, then Run, or Run > Run for project.
 * Command line: QuPath script export_corrections.groovy --project=project.qpproj --args corrections.csv
 * Arguments: the csv (default: corrections.csv beside the project file); reviewed: also nuclei that
 *            review_nuclei left as they are.
 * QuPath 0.4 to 0.7. Changes nothing in the project.
 */

import groovy.transform.CompileStatic
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.CRC32
import org.locationtech.jts.geom.LineString
import org.locationtech.jts.geom.util.LinearComponentExtracter
import qupath.lib.roi.GeometryROI
import qupath.lib.roi.PolygonROI
import qupath.lib.roi.RectangleROI
import qupath.lib.roi.interfaces.ROI

def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
def withReviewed = options.remove("reviewed")
def imageData = getCurrentImageData()
if (imageData == null)
    throw new IllegalStateException("export_corrections works on an image: open one, or choose Run > Run for project")
// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }
def className = { it.getPathClass() == null || it.getPathClass() == PathClass.getNullClass() ? "" : it.getPathClass().toString() }

def image = getProjectEntry()?.getImageName() ?: imageData.getServer().getMetadata().getName()
def folder = getProject()?.getPath()?.getParent()?.toFile()
if (!options && folder == null)
    throw new IllegalStateException("there is no project to put corrections.csv into; give a file as argument")
def file = options ? new File(options[0]) : new File(folder, "corrections.csv")
def calibration = imageData.getServer().getPixelCalibration()
def isCalibrated = calibration.hasPixelSizeMicrons()
def unit = isCalibrated ? "\u00b5m" : "px"
def width = isCalibrated ? calibration.getPixelWidthMicrons() : 1d
def height = isCalibrated ? calibration.getPixelHeightMicrons() : 1d

def quoted = { '"' + (it ?: "").toString().replaceAll("[\\r\\n]+", " ").replace('"', '""') + '"' }
def rows = []
def counts = [class: 0, outline: 0, "class and outline": 0, accepted: 0]
imageData.getHierarchy().getAllObjects(false).each {
    def noted = metadata(it)
    def written = noted.get("stqp.written")
    if (written == null || noted.get("stqp.source") == null || it.getROI() == null)
        return
    def place = written.lastIndexOf("|")
    def was = written.substring(0, Math.max(0, place))
    def what = [
        was != className(it) ? "class" : null,
        written.substring(place + 1) != checksum(it.getROI()) ? "outline" : null,
    ].findAll().join(" and ")
    if (!what && withReviewed && noted.get("stqp.reviewed"))
        what = "accepted"
    if (!what)
        return
    counts[what]++
    def roi = PathObjectTools.getROI(it, true)
    rows << [
        quoted(image), it.getID(), quoted(it.getName()), quoted(noted.get("stqp.source")), what, quoted(was),
        quoted(className(it)), quoted(noted.get("stqp.reviewed")),
        String.format(Locale.ROOT, "%.3f,%.3f,%s", roi.getCentroidX() * width, roi.getCentroidY() * height, unit),
        String.format(Locale.ROOT, "%.2f", roi.getScaledArea(width, height)),
    ].join(",")
}

def head = "image,id,name,source,changed,written_class,class,reviewed,x,y,unit,area"
def others = file.isFile() ? file.readLines("UTF-8").drop(1).findAll { it && !it.startsWith(quoted(image) + ",") } : []
file.getAbsoluteFile().getParentFile().mkdirs()
file.setText(([head] + others + rows).join("\n") + "\n", "UTF-8")
println "${image}: ${rows.size()} nuclei " + counts.findAll { it.value }.collect { "${it.value} ${it.key}" }.toString() + " in ${file}"

/** Checksum of an outline as stqp notes it: of its vertices as floats, sorted by x, then y. */
@CompileStatic
static String checksum(ROI roi) {
    List<double[]> vertices = []
    boolean rounded = false
    if (roi instanceof GeometryROI) {
        List<LineString> rings = LinearComponentExtracter.getLines(roi.getGeometry()) as List<LineString>
        for (LineString ring : rings) {
            def places = ring.getCoordinates()
            for (int i = 0; i < places.length - 1; i++)
                vertices.add([places[i].getX(), places[i].getY()] as double[])
        }
        rounded = rings.size() != 1 // 0.6 and later round these when they save
    } else if (roi instanceof PolygonROI || roi instanceof RectangleROI) {
        for (point in roi.getAllPoints())
            vertices.add([point.getX(), point.getY()] as double[])
        if (vertices.size() > 1 && Arrays.equals(vertices.first(), vertices.last()))
            vertices.remove(vertices.size() - 1)
    } else {
        return "another shape"
    }
    List<float[]> sorted = []
    for (double[] v : vertices) {
        double x = rounded ? Math.floor(v[0] / 0.01d + 0.5d) * 0.01d : v[0]
        double y = rounded ? Math.floor(v[1] / 0.01d + 0.5d) * 0.01d : v[1]
        sorted.add([x + 0d, y + 0d] as float[]) // -0 becomes 0
    }
    sorted.sort { float[] a, float[] b -> Float.compare(a[0], b[0]) ?: Float.compare(a[1], b[1]) }
    def buffer = ByteBuffer.allocate(8 * sorted.size()).order(ByteOrder.LITTLE_ENDIAN)
    for (float[] v : sorted)
        buffer.putFloat(v[0]).putFloat(v[1])
    def crc = new CRC32()
    crc.update(buffer.array())
    return String.format("%08x", crc.getValue())
}
