/*
 * Counts, over all images of the project, what a person changed of the nuclei that stqp wrote.
 * From which class to which, and how many outlines. Runs once for the whole project, and reads the saved objects of
 * every image but the open one. export_corrections lists the nuclei one by one.
 *
 * In QuPath: Automate > Project scripts > corrections summary, then Run (not Run for project).
 * Command line: QuPath script corrections_summary.groovy --project=project.qpproj
 * Arguments: a csv to write the counts to, if wanted.
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
def project = getProject()
if (project == null)
    throw new IllegalStateException("corrections_summary works on a project: open one")
// in a batch QuPath calls this for every image; the first call is enough
if ((binding.getVariables().get("qupath.script.batchIndex") ?: 0) > 0)
    return
// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }
def className = { it.getPathClass() == null || it.getPathClass() == PathClass.getNullClass() ? "" : it.getPathClass().toString() }

def rows = new TreeMap<String, Integer>()
def total = 0
def corrected = 0
def outlines = 0
project.getImageList().each { entry ->
    def isOpen = getCurrentImageData() != null && entry == getProjectEntry()
    if (!isOpen && !entry.hasImageData())
        return
    def hierarchy = isOpen ? getCurrentHierarchy() : entry.readHierarchy()
    hierarchy.getAllObjects(false).each {
        // "<class>|<checksum of the outline>"; the class is empty for none
        def written = metadata(it).get("stqp.written")
        if (written == null || metadata(it).get("stqp.source") == null)
            return
        total++
        def place = written.lastIndexOf("|")
        def was = written.substring(0, Math.max(0, place))
        def isMoved = written.substring(place + 1) != checksum(it.getROI())
        def isOther = was != className(it)
        if (isMoved)
            outlines++
        if (isMoved || isOther)
            corrected++
        if (isOther)
            rows.merge([entry.getImageName(), was ?: "(none)", className(it) ?: "(none)"]
                .collect { '"' + it.replace('"', '""') + '"' }.join(","), 1, Integer::sum)
    }
}

println "${corrected} of ${total} nuclei of stqp are corrected: ${rows.values().sum() ?: 0} classes, ${outlines} outlines"
rows.each { row, n -> println "${n}  ${row}" }
if (options) {
    def file = new File(options[0])
    file.setText("image,written,now,objects\n" + rows.collect { row, n -> "${row},${n}\n" }.join(""), "UTF-8")
    println "written to ${file}"
}

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
